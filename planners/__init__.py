"""Floor 3: planners, each a function from observations to plans. None is built in yet."""
