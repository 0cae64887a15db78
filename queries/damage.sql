-- Damage that the kept forms report, by section: forms, boxes and linear feet.
SELECT section, forms, damaged_boxes, linear_feet
FROM (
  SELECT
    1 AS place, 'lower' AS section, COUNT(*) AS forms,
    CAST(COALESCE(SUM(num_damaged_lower_boxes), 0) AS BIGINT) AS damaged_boxes,
    ROUND(COALESCE(SUM(lower_cabinets_lf), 0), 1) AS linear_feet
  FROM claimx_itel_forms
  WHERE lower_cabinets_damaged
  UNION ALL
  SELECT
    2 AS place, 'upper' AS section, COUNT(*) AS forms,
    CAST(COALESCE(SUM(num_damaged_upper_boxes), 0) AS BIGINT) AS damaged_boxes,
    ROUND(COALESCE(SUM(upper_cabinets_lf), 0), 1) AS linear_feet
  FROM claimx_itel_forms
  WHERE upper_cabinets_damaged
  UNION ALL
  SELECT
    3 AS place, 'full height' AS section, COUNT(*) AS forms,
    CAST(COALESCE(SUM(num_damaged_full_height_boxes), 0) AS BIGINT) AS damaged_boxes,
    ROUND(COALESCE(SUM(full_height_cabinets_lf), 0), 1) AS linear_feet
  FROM claimx_itel_forms
  WHERE full_height_cabinets_damaged
  UNION ALL
  SELECT
    4 AS place, 'island' AS section, COUNT(*) AS forms,
    CAST(COALESCE(SUM(num_damaged_island_boxes), 0) AS BIGINT) AS damaged_boxes,
    ROUND(COALESCE(SUM(island_cabinets_lf), 0), 1) AS linear_feet
  FROM claimx_itel_forms
  WHERE island_cabinets_damaged
) AS sections
ORDER BY place
