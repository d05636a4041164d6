"""Operations on registers (see ``docs/atomic.md``)."""
