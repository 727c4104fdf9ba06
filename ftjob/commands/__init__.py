"""The commands, a module each: parse, call, print. `__main__` holds their table."""
