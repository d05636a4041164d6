"""Operations on registers: changes, which are applied once, and linearizable reads."""
