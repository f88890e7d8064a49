"""Prompt texts, as data: what a question is wrapped in before a model sees it.

A template holds `{question}` once; `fill` puts the question there. Texts that come from a paper or another system are
quoted word for word with their source, because rewards and published numbers depend on the wording.

Leaves out: chat formats, which belong to each model (`r1jax.text.chat`).
"""

# DeepSeek-R1 (arXiv:2501.12948, v1), Table 1: the template of R1-Zero. The paper writes "User: prompt. Assistant:"; its
# full stop after the question is left out, for questions bring their own punctuation.
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think> <answer> answer here </answer>. User: {question} Assistant:"
)

# The system turn of open-r1's GRPO recipes (huggingface/open-r1, recipes/*/grpo/*.yaml, `system_prompt`).
OPEN_R1_SYSTEM = (
    "You are a helpful AI Assistant that provides well-reasoned and detailed responses. You first think about the "
    "reasoning process as an internal monologue and then provide the user with the answer. Respond in the following "
    "format: <think>\n...\n</think>\n<answer>\n...\n</answer>"
)

# What DeepSeek-R1's model card asks for on mathematical problems.
BOXED = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."

PLAIN = "{question}"

# A short plain-text form that opens the reply, for small models that do not know the tags yet; see `show_example`.
QUESTION_REPLY = "Question: {question}\nReply:"
TAGGED_REPLY = "<think> {reasoning} </think> <answer> {answer} </answer>"

TEMPLATES: dict[str, str] = {"r1_zero": R1_ZERO, "boxed": BOXED, "plain": PLAIN, "question_reply": QUESTION_REPLY}


def fill(template: str, question: str) -> str:
    """The template with the question in its place. Other braces (LaTeX, code) stay as they are, on both sides."""
    if template.count("{question}") != 1:
        raise ValueError("a prompt template holds {question} exactly once")
    return template.replace("{question}", question)


def show_example(template: str, question: str, reasoning: str, answer: str, *, separator: str = "\n\n") -> str:
    """The template with one solved question before it, in the tags of R1: still a template, to be filled with another.

    A base model that never saw the tags writes them by chance almost never; one example makes the first rewards likely.
    """
    reply = TAGGED_REPLY.replace("{reasoning}", reasoning).replace("{answer}", answer)
    return f"{fill(template, question)} {reply}{separator}{template}"
