"""Floor 0: the types, contracts and small services that every other module stands on."""
