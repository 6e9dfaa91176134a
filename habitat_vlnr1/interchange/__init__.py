"""VLN-Ego in and out of other forms: ShareGPT JSON, Parquet, dataset cards, leaderboard files."""
