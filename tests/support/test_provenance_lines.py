from vitfx.support.text import provenance_lines


def test_all_that_a_report_depends_on_is_listed():
    lines = provenance_lines({"tau": 0.01, "arch": None}, {"torch": "2.14.1"})
    assert "\n".join(lines) == "\n## Settings\n\n- tau: 0.01\n- arch: None\n\n## Environment\n\n- torch: 2.14.1\n"
