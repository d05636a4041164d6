"""Operations on registers (see ``docs/atomic.md``). Not used yet."""
