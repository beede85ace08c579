"""Any server that speaks the OpenAI API, adapters as model names."""
