"""Models that a server holds: any OpenAI-compatible endpoint (vLLM, SGLang, `transformers serve`, hosted models)."""
