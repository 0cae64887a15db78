"""What the commands of an operator do, without a command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from itel_cabinet.pipeline.operate.backfill import BackfillStoppedError, backfill_photos, missing_photos
    from itel_cabinet.pipeline.operate.backtest import backtest
    from itel_cabinet.pipeline.operate.dead_letters import (
        Entry,
        ErrorLog,
        FailureCount,
        Filter,
        ForeignMessage,
        RecentLetters,
        error_log,
        failure_counts,
        original,
        recent_letters,
    )
    from itel_cabinet.pipeline.operate.erase import Erasure, People, Receipt, find_listed
    from itel_cabinet.pipeline.operate.filed import Filed, find_bodies, find_filed, find_filed_of
    from itel_cabinet.pipeline.operate.group_view import GroupView
    from itel_cabinet.pipeline.operate.observation import Observer, Subject
    from itel_cabinet.pipeline.operate.preview import NotAnAnswerError, PreviewContext, preview_answer
    from itel_cabinet.pipeline.operate.purge import Purged, purge
    from itel_cabinet.pipeline.operate.questions import UnknownQuestion, rank_unknown_questions
    from itel_cabinet.pipeline.operate.readers import (
        ReadingGroup,
        describe_left_behind,
        find_job,
        lowest_offsets,
        reading_groups,
    )
    from itel_cabinet.pipeline.operate.rederive import Revision, rederive
    from itel_cabinet.pipeline.operate.replay import Outcome, Replay, Replayer, may_have_row
    from itel_cabinet.pipeline.operate.report import gather, render
    from itel_cabinet.pipeline.operate.resubmission import Place, Resubmitter, letters_by_gap, records_in_history
    from itel_cabinet.pipeline.operate.settled import EventKey, event_key, know_none, make_index
    from itel_cabinet.pipeline.operate.timeline import Timeline, trace_letters, trace_tables
    from itel_cabinet.pipeline.operate.topics import TopicPlan, TopicState, create_topics, describe_topics
    from itel_cabinet.pipeline.operate.verdict import (
        Health,
        Limits,
        Observed,
        Offsets,
        Tables,
        Unseen,
        Verdict,
        WorkerState,
        judge,
    )

__all__ = [
    "BackfillStoppedError",
    "Entry",
    "Erasure",
    "ErrorLog",
    "EventKey",
    "FailureCount",
    "Filed",
    "Filter",
    "ForeignMessage",
    "GroupView",
    "Health",
    "Limits",
    "NotAnAnswerError",
    "Observed",
    "Observer",
    "Offsets",
    "Outcome",
    "People",
    "Place",
    "PreviewContext",
    "Purged",
    "ReadingGroup",
    "Receipt",
    "RecentLetters",
    "Replay",
    "Replayer",
    "Resubmitter",
    "Revision",
    "Subject",
    "Tables",
    "Timeline",
    "TopicPlan",
    "TopicState",
    "UnknownQuestion",
    "Unseen",
    "Verdict",
    "WorkerState",
    "backfill_photos",
    "backtest",
    "create_topics",
    "describe_left_behind",
    "describe_topics",
    "error_log",
    "event_key",
    "failure_counts",
    "find_bodies",
    "find_filed",
    "find_filed_of",
    "find_job",
    "find_listed",
    "gather",
    "judge",
    "know_none",
    "letters_by_gap",
    "lowest_offsets",
    "make_index",
    "may_have_row",
    "missing_photos",
    "original",
    "preview_answer",
    "purge",
    "rank_unknown_questions",
    "reading_groups",
    "recent_letters",
    "records_in_history",
    "rederive",
    "render",
    "trace_letters",
    "trace_tables",
]

# Commands wait for what they use, not for DuckDB, Jinja2 and Beam.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "backtest": ["backtest"],
        "backfill": ["BackfillStoppedError", "backfill_photos", "missing_photos"],
        "dead_letters": [
            "Entry",
            "ErrorLog",
            "FailureCount",
            "Filter",
            "RecentLetters",
            "ForeignMessage",
            "error_log",
            "failure_counts",
            "original",
            "recent_letters",
        ],
        "erase": ["Erasure", "People", "Receipt", "find_listed"],
        "group_view": ["GroupView"],
        "observation": ["Observer", "Subject"],
        "filed": ["Filed", "find_bodies", "find_filed", "find_filed_of"],
        "preview": ["NotAnAnswerError", "PreviewContext", "preview_answer"],
        "purge": ["Purged", "purge"],
        "questions": ["UnknownQuestion", "rank_unknown_questions"],
        "readers": ["ReadingGroup", "describe_left_behind", "find_job", "lowest_offsets", "reading_groups"],
        "rederive": ["Revision", "rederive"],
        "replay": ["Outcome", "Replay", "Replayer", "may_have_row"],
        "resubmission": ["Place", "Resubmitter", "letters_by_gap", "records_in_history"],
        "report": ["gather", "render"],
        "settled": ["EventKey", "event_key", "know_none", "make_index"],
        "topics": ["TopicPlan", "TopicState", "create_topics", "describe_topics"],
        "timeline": ["Timeline", "trace_letters", "trace_tables"],
        "verdict": ["Health", "Limits", "Observed", "Offsets", "Tables", "Unseen", "Verdict", "WorkerState", "judge"],
    },
)
