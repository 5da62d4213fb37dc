"""One question each: arms that differ in a few fields."""
