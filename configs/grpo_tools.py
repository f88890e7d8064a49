"""Tool use in miniature: a small language model learns to call a calculator for sums and products.

    python -m r1jax.train --config=configs/grpo_tools.py

SmolLM2-135M-Instruct is asked for sums and products of numbers from 100 to 999. Its chat template knows no tools, so a
text before the question lists the calculator, and one worked example shows a call (`<call>calculate 257 + 468</call>`);
only the last number of the reply is rewarded. Before, every third reply tries a call.
Expected: strict accuracy on 40 held-out problems from 12.5% ± 5.3 to 92.5% ± 4.2 (seed 0), from 12.5% ± 5.3 to 77.5% ±
6.7 (seed 1) and from 0% to 75.0% ± 6.9 (seed 2), greedy from 5% ± 3.5 to 100%, 97.5% ± 2.5 and 100%; without the tool
0% before and after, since no answer is ever right. A run takes about three minutes of computing time, and took 11 to 19
minutes on two cores that others used as well.

Arguments after a colon, e.g. `configs/grpo_tools.py:tool=none`:

    tool  calculate (default): tool that the model may call; none: the same without one, where the example is answered
          at once
    seed  0 (default): seed of data order and sampling; the held-out problems are the same for all
"""

from ml_collections import ConfigDict

from r1jax.core.config import parse_args

CALL = "<call>calculate 257 + 468</call><result>725</result> 725"


def get_config(arg: str = "") -> ConfigDict:
    """The run for `tool` and `seed`."""
    args = parse_args(arg, tool="calculate", seed=0)
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = args.seed
    config.steps = 3  # enough: the first update already turns a third of calls into four fifths

    config.model = ConfigDict(
        dict(
            name="models/SmolLM2-135M-Instruct.Q4_1.gguf",
            fetch="python launch/fetch_demo.py",
            scan_layers=False,  # unrolled layers are faster on CPU
        )
    )
    has_tool = args.tool != "none"
    reply = CALL if has_tool else "725<|im_end|>"  # the end token, spelt out, shows where to stop
    config.data = ConfigDict(
        dict(
            source="arithmetic",
            problems=2000,
            eval_problems=40,
            args=dict(low=100, high=999, question="What is {a} {sign} {b}?"),
            template=f"Question: What is 257 + 468?\nReply: {reply}\n\nQuestion: {{question}}\nReply:",
            seed=0,
        )
    )
    if has_tool:
        config.tools = (args.tool,)
        config.episode = ConfigDict(dict(max_turns=2, turn_tokens=20, max_tokens=40, stop_texts=("\n",)))
    config.rollout = ConfigDict(dict(prompts_per_step=4, max_new_tokens=20, slots=32))
    config.rewards = ConfigDict(dict(number_reward=1.0))
    config.train = ConfigDict(dict(micro_batch_size=16, completions_per_row=8, old_logprobs="sampler"))
    config.loss = ConfigDict(dict(clip_high=0.28))
    config.optimizer = ConfigDict(dict(learning_rate=4e-5, schedule="linear", final_share=0.1))
    config.eval = ConfigDict(dict(name="arithmetic", strict=("number_reward",)))
    config.log = ConfigDict(dict(show_every_steps=1))
    return config
