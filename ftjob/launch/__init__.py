"""How ranks come to be: `world` reads what the launcher of this process announced."""
