"""Where deliveries go, one file each."""
