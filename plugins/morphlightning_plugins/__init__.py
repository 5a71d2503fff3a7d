"""The built-in components, one package a kind; found through entry points like anybody's."""
