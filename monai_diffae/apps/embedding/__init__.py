"""Commands and classes that encode scans to z_sem."""
