"""Registry of the environments and tools that come with r1jax, by their names in a config."""

# name in a config -> module:name of a class or of a function that makes one, imported on first use.
ENVIRONMENTS = {
    "countdown": "r1jax.environments.countdown:Countdown",
    "guess_number": "r1jax.environments.guessing:NumberGame",
    "guess_word": "r1jax.environments.guessing:WordGame",
    "python": "r1jax.environments.python_tool:PythonTool",
    "retrieval": "r1jax.environments.retrieval:Retrieval",
}

# name in a config -> module:function of a plain tool.
TOOLS = {
    "calculate": "r1jax.environments.calculator:calculate",
}

# prefix in a config (`PREFIX:WHAT`) -> module:function from what follows it to a class.
ADAPTERS = {
    "openenv": "r1jax.environments.openenv_adapter:make_environment",
    "verifiers": "r1jax.environments.verifiers_adapter:make_environment",
}
