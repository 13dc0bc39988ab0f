"""What runs modules, one file each."""
