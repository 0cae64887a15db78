-- Kept forms that hold a question which is not known, with the warnings that say so.
SELECT assignment_id, updated_at, parse_warnings
FROM claimx_itel_forms
WHERE parse_warnings LIKE '%unknown question%'
