"""What was done and what it cost."""

from fewbit.report.summary import LayerReport, Report

__all__ = ["LayerReport", "Report"]
