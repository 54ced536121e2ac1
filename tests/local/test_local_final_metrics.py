"""What DescribeTrainingJob shows of a job's metrics once it has ended: the last value of each, from its log."""

import pytest

DEFINED = {
    "TrainingImage": "none",
    "TrainingInputMode": "File",
    "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/train.py"],
    "MetricDefinitions": [
        {"Name": "acc", "Regex": r"acc=(\S+)"},
        {"Name": "loss", "Regex": r"loss=([0-9.]+)"},
        {"Name": "never", "Regex": "never=(.*)"},
        {"Name": "broken", "Regex": "("},
        {"Name": "no group", "Regex": "acc"},
        {"Name": "left out", "Regex": "epoch(?: of ([0-9]+))?"},
    ],
}


def shown(description) -> dict[str, float]:
    return {each["MetricName"]: each["Value"] for each in description.get("FinalMetricDataList", [])}


@pytest.mark.parametrize(("end", "status"), [("", "Completed"), ("raise SystemExit(3)", "Failed")])
def test_the_last_values_are_shown_in_single_precision(world, end, status):
    script = f"""
        for epoch in range(3):
            print(f"epoch {{epoch}} acc={{0.1 * (epoch + 1)}} loss={{1 / (epoch + 1)}}")
        print("acc=nan")
        print("acc=none of these")
        {end}
    """
    world.create(script=script, AlgorithmSpecification=DEFINED)
    ended = world.ended()
    assert ended["TrainingJobStatus"] == status
    assert shown(ended) == {"acc": 0.30000001192092896, "loss": 0.3333333432674408}


def test_without_definitions_there_are_none(world):
    world.create(script="print('acc=0.5')")
    assert "FinalMetricDataList" not in world.ended()


def test_a_long_log_is_read_at_its_end(world):
    script = """
        print("loss=7")
        for _ in range(2000):
            print("x" * 1000)
        print("acc=0.5")
    """
    world.create(script=script, AlgorithmSpecification=DEFINED)
    assert shown(world.ended()) == {"acc": 0.5}
