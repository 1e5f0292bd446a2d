"""From score files to leaderboards, ranks, comparisons and the gate: functions over files."""
