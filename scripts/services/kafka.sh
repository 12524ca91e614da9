# shellcheck shell=bash
# One Kafka broker that is its own controller (KRaft), from the jars in kafka/pom.xml.

KAFKA_POM=$ROOT/scripts/services/kafka/pom.xml

kafka_jars() {
  mvn -q -B -f "$KAFKA_POM" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$1"
}

kafka_fetch() { KAFKA_JARS=$(cached "kafka-$(hash_of "$KAFKA_POM")" kafka_jars); }

# kafka_settings FOLDER BROKER_PORT CONTROLLER_PORT: a broker with nothing to replicate to and no
# topics but those that were asked for.
kafka_settings() {
  cat >"$1/server.properties" <<SETTINGS
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$3
listeners=PLAINTEXT://127.0.0.1:$2,CONTROLLER://127.0.0.1:$3
advertised.listeners=PLAINTEXT://127.0.0.1:$2
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$1/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
SETTINGS
  cat >"$1/log4j2.properties" <<'SETTINGS'
status=error
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %c{1} %m%n
rootLogger.level=info
rootLogger.appenderRef.console.ref=console
SETTINGS
}

kafka_up() {
  local folder=$1 port controller
  kafka_fetch || return 1
  mkdir -p "$folder"
  if [ ! -f "$folder/port" ]; then
    port=$(free_port)
    controller=$(free_port)
    kafka_settings "$folder" "$port" "$controller"
    echo "$port" >"$folder/port"
  fi
  # The quick compiler only: a broker that lives for minutes never earns the slow one back.
  local java=(java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xmx512m "-Dlog4j2.configurationFile=$folder/log4j2.properties" -cp "$KAFKA_JARS/*")
  if [ ! -f "$folder/data/meta.properties" ]; then
    "${java[@]}" kafka.tools.StorageTool format -t d3lkLWRldi1jbHVzdGVyLQ -c "$folder/server.properties" >"$folder/format.log" 2>&1 || {
      tail -n 20 "$folder/format.log" >&2
      return 1
    }
  fi
  pid_of "$folder" >/dev/null || spawn "$folder" "${java[@]}" -XX:+ExitOnOutOfMemoryError kafka.Kafka "$folder/server.properties"
  wait_for kafka 120 "$folder" grep -q 'Kafka Server started' "$folder/log"
}

kafka_down() { halt "$1"; }
kafka_env() { echo "WYD_TEST_KAFKA_BROKERS=127.0.0.1:$(cat "$1/port")"; }
