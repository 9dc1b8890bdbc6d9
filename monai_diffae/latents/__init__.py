"""What can be done with z_sem: probes. Arrays only."""
