"""What a run is, in plain Python: visits of the loop, parameter and FLOP arithmetic. No torch."""
