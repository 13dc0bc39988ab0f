"""How people are told, one file each."""
