"""What people see: pages and JSON."""
