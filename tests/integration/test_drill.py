"""The drill in its short form: every target killed once, and every other drill."""

from tests.drill import drill, show
from tests.postgres import postgres_server


def test_no_accepted_job_is_lost():
    with postgres_server() as url:
        rows, traffic = drill(7, 1, url and f"{url}/postgres")
    assert len(rows) >= 9
    assert traffic.answers > 20
    assert show(rows, traffic)
