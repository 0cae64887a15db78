"""The queries of the tables, one file each, in SQL that Spark and DuckDB read alike; `views.sql` goes before them.

`itel-cabinet query` runs them (see docs/queries.md), and so does a notebook on Spark 3.4 or later::

    spark.conf.set("spark.sql.session.timeZone", "UTC")
    for statement in views.split(";\\n"):
        spark.sql(statement)
    spark.sql(query, args={"assignment_id": 5430007})
"""
