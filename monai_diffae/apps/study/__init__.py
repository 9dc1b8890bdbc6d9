"""Questions about a table of z_sem: what goes with what, what is scanner, what two models share."""
