"""What a person runs: the command line, the plan, the flow of units, submission, verification, reports."""
