"""The plan of curves: every metric somewhere, related ones together, one metric a chart when runs are compared."""

from r1jax.eval.charts import Chart, Section, plan_charts, plan_comparison

NAMES = [
    "eval/addition/pass@1",
    "eval/addition/pass@1_stderr",
    "eval/addition/format_rate",
    "eval/addition/mean_length",
    "reward",
    "rewards/answer_reward/mean",
    "rewards/r1_format_reward/mean",
    "rewards/answer_reward/std",
    "loss",
    "time/rollout",
    "time/train",
    "step_time",
    "sampling/sampling_logp_difference/mean",
    "something/new",
    "something/new_stderr",
]


def _charts(sections: list[Section]) -> dict[str, Chart]:
    return {chart.title: chart for section in sections for chart in section.charts}


def test_every_metric_is_shown() -> None:
    charts = _charts(plan_charts(NAMES)).values()
    shown = {key for chart in charts for line in chart.lines for key in (line.key, line.stderr, chart.total)}
    assert shown - {None} == set(NAMES)


def test_related_metrics_share_a_chart() -> None:
    charts = _charts(plan_charts(NAMES))
    held_out = charts["Held-out: addition"]
    assert [(line.label, line.stderr) for line in held_out.lines] == [
        ("strict, sampled", "eval/addition/pass@1_stderr"),
        ("format", None),
    ]
    assert held_out.unit == "percent" and held_out.domain == (0, 1)
    assert [line.label for line in charts["Reward by name"].lines] == ["answer_reward", "r1_format_reward"]
    assert charts["Seconds a step"].stack and charts["Seconds a step"].total == "step_time"
    assert charts["something/new"].lines[0].stderr == "something/new_stderr"


def test_what_no_template_names_is_folded_away_but_there() -> None:
    last = plan_charts(NAMES)[-1]
    assert last.folded and [chart.title for chart in last.charts] == [
        "eval/addition/mean_length",
        "rewards/answer_reward/std",
        "something/new",
    ]


def test_loss_leads_only_where_no_reward_does() -> None:
    assert [chart.title for chart in plan_charts(["loss", "grad_norm"])[0].charts] == ["Loss"]
    assert [chart.title for chart in plan_charts(["loss", "reward"])[0].charts] == ["Reward"]


def test_nothing_to_draw() -> None:
    assert plan_charts([]) == []


def test_comparison_has_a_metric_a_chart_and_a_line_a_run() -> None:
    charts = _charts(plan_comparison([NAMES, ["reward", "time/rollout"], ["kl"]], ["a", "b", "c"]))
    assert [(line.label, line.run) for line in charts["Reward"].lines] == [("a", 0), ("b", 1)]
    assert [line.run for line in charts["KL to the reference"].lines] == [2]
    assert [line.run for line in charts["Seconds a step · rollout"].lines] == [0, 1]
    assert [line.key for line in charts["Seconds a step · all"].lines] == ["step_time"]
    assert not any(chart.stack for chart in charts.values())
