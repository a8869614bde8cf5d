CREATE TABLE IF NOT EXISTS keylane_fence (
  resource text PRIMARY KEY,
  token bigint NOT NULL
)
