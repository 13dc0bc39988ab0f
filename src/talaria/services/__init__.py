"""What runs; none of them knows another."""
