"""Changes of the tiny GRPO config that give it an environment of several turns."""

STOPS = '["e", "t", "o", "1", "a", "n", "s", "k", "B", "7", "w"]'
EPISODES = {
    "environment": "tests.environments.toys:Talker",
    "data__template": "chat",
    "episode": f'{{"max_turns": 3, "turn_tokens": 16, "max_tokens": 96, "stop_texts": {STOPS}}}',
    "rewards": '{"environment_reward": 1.0}',
    "eval__strict": '["environment_reward"]',
    "eval__format": "",
}
