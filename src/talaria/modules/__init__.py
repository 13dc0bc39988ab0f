"""Built-in modules, one file each."""
