"""What an institution does: it founds a federation, runs a node, gives budgets and vouches for donors."""
