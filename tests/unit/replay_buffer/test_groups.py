"""Groups of responses: engine requests, accumulated responses, and the continuation of groups that were cut off."""

from reval_core.engines.engine import Completion
from reval_core.model.loading import make_tiny_tokenizer
from reval_core.problems import Problem
from reval_core.replay_buffer.groups import Group, cut_off_groups
from reval_core.replay_buffer.trajectories import IDS_PER_ROUND, GeneratedResponse, SampleRequest, response_table
from reval_core.storage.tables import SCHEMAS


def group(name="p", samples=3):
    problem = Problem(name, "1+2=", "3", "any", "sums")
    return Group.new(
        [SampleRequest(problem, sample, "1+2=", [4, 5], seed=100 + sample) for sample in range(samples)]
    )


def test_a_group_is_finished_when_its_last_response_is_complete():
    one = group()
    one.add(0, Completion([7, 2], [-0.5, -0.25], "stop"), 4)
    one.add(2, Completion([7] * 4, [-1.0] * 4, "length"), 4)
    assert (one.finished, one.unfinished) == (False, [1])
    one.add(1, Completion([8], [-0.1], "partial"), 4)
    assert (one.finished, one.unfinished) == (False, [1])
    one.add(1, Completion([2], [-0.2], "stop"), 5)
    assert one.finished
    assert one.responses[1] == GeneratedResponse([8, 2], [-0.1, -0.2], [4, 5], "stop")


def test_requests_include_partial_responses_and_only_those_get_new_seeds():
    one = group()
    one.add(0, Completion([7, 2], [-0.5, -0.25], "stop"), 4)
    one.add(1, Completion([8], [-0.1], "partial"), 4)
    later = one.reseeded([901, 902, 903])
    assert [request.seed for request in later.requests] == [100, 902, 903]
    request = later.request(1)
    assert (request.prompt_tokens, request.written, request.seed) == ([4, 5], [8], 902)
    assert later.request(2).written == ()


def test_groups_survive_the_round_trip_through_the_table():
    groups = [group("p"), group("q")]
    for number, one in enumerate(groups):
        one.add(0, Completion([7, 2], [-0.5, -0.25], "stop"), 4)
        one.add(1, Completion([8 + number], [-0.125], "partial"), 4)
        one.add(2, Completion([], [], "partial"), 4)
    rows = response_table(
        [request for one in groups for request in one.requests],
        [response for one in groups for response in one.responses],
        make_tiny_tokenizer("0123456789+="),
        round=5,
        shard=None,
        first_id=5 * IDS_PER_ROUND + 9,
        policy="the policy",
        engine="vllm",
        temperature=1.0,
    )
    assert cut_off_groups(rows.cast(SCHEMAS["partials"]), samples=3) == groups
