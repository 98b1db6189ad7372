"""Those who watch a machine from outside and may stop it."""
