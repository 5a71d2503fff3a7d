"""What recipes share; a recipe puts the folder above on sys.path and imports from here."""
