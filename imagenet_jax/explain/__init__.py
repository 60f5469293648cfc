"""Pictures of what a model's predictions depend on."""
