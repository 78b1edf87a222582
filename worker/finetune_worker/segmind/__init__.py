"""The client of Segmind's fine-tuning API: typed calls, each bounded in time, with errors classified once."""
