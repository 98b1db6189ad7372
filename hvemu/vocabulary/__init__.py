"""Words without behaviour: addresses, exits, outcomes, errors, the machine map. Imports nothing of hvemu."""
