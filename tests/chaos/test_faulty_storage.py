"""A run whose every word with its storage goes through a proxy that fails one request in five, four times what is promised."""

import random
import secrets

import pytest

from tests.chaos.proxy import FaultyProxy
from tests.chaos.site import Site, everything, kill_one, problems, published, upload


@pytest.mark.parametrize("killed", ["ray::Scorer", "ray::assemble_shard"])
def test_through_failing_requests_and_a_kill_the_bytes_are_the_same_and_no_secret_is_told(
    calm,
    tmp_path,
    s3_bucket,
    s3_endpoint,
    killed,
):
    secret = f"secret-{secrets.token_hex(16)}"
    upload(calm.template, f"{s3_bucket}/out")
    with FaultyProxy(s3_endpoint, share=0.2, seed=len(killed), stall=0.5) as proxy:
        environment = {"AWS_ENDPOINT_URL": proxy.url, "AWS_SECRET_ACCESS_KEY": secret}
        site = Site(f"{s3_bucket}/out", tmp_path, None, ("--seconds", "0.05"), environment)
        rng = random.Random(0)
        hit = []
        ended = site.run(attack=lambda pid: hit.append(kill_one(killed, pid, rng)))
        assert ended.status == 0, ended.errors
        assert hit == [True]
        assert sum(proxy.faults.values()) > 5, "the proxy failed nothing"
    assert published(f"{s3_bucket}/out") == calm.bytes
    assert problems(f"{s3_bucket}/out") == []
    told = [ended.said.encode(), ended.errors.encode(), *everything(f"{s3_bucket}/out").values()]
    assert len(told) > len(calm.bytes)
    assert not any(secret.encode() in content for content in told)
