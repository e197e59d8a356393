"""Learning an operator: its optimizer, gradients released inside backward, schedules, the hand-over."""
