"""What users of hvemu test with: the catalogue of guests and a way to run one."""
