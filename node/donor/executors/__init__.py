"""Ways to run a job on the donor's hardware, all behind one interface (see executor.py)."""
