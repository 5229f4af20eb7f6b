"""The wallet of one person: it signs, remembers what it signed, and checks what it is told."""
