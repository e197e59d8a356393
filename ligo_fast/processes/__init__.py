"""Growth among processes: sharded models (DTensors), what is sent, and who computes what."""
