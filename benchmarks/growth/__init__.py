"""`./dev bench --growth`: what things cost as work grows. Each module measures along one axis."""
