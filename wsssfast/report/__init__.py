"""The HTML report: one file that shows what the pipeline did, without network or scripts."""

from wsssfast.report.write import ReportSummary, write_report

__all__ = ["ReportSummary", "write_report"]
