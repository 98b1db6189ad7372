"""Those who watch a machine from outside."""
